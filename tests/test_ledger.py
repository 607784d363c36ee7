"""Requests survive the journey to a worker; the ledger knows what is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raybench.ledger import Ledger, Request


@pytest.fixture
def requests(make_spec: Any, plan_of: Any) -> list[Request]:
    found: list[Request] = plan_of(make_spec(seeds={"train": [0, 1]})).references()
    return found


def test_request_survives_json(requests: list[Request]) -> None:
    request = Request(requests[0].spec, {"variant": "a", "tuned_here": True})
    again = Request.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert again.spec.trial_id == request.spec.trial_id


def test_missing_is_what_has_no_row_each_trial_once(requests: list[Request]) -> None:
    first, *others = requests
    ledger = Ledger(rows={first.spec.trial_id: {"status": "failed"}})
    assert ledger.done(first.spec.trial_id)
    assert ledger.missing([*requests, *requests]) == others


def test_retried_trials_carry_their_attempt(requests: list[Request]) -> None:
    first = requests[0]
    ledger = Ledger(attempts={first.spec.trial_id: 2})
    missing = ledger.missing([Request(first.spec, {"variant": "v"}), *requests[1:]])
    assert missing[0].context == {"variant": "v", "attempt": 2}
    assert all("attempt" not in request.context for request in missing[1:])
