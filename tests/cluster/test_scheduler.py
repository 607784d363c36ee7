"""The same rows with 1 slot, 2 slots and without Ray; failures become rows."""

from __future__ import annotations

import pandas as pd


def test_same_rows_with_one_slot_two_slots_and_serial(drive, serial, on, capped, spec):
    expected = drive(spec(), serial, results="serial")
    assert len(expected.ids(phase="search")) == 12
    for slots in (1, 2):
        found = drive(spec(), on(capped(slots)), results=f"slots{slots}")
        assert found.ids() == expected.ids()
        pd.testing.assert_frame_equal(found.table(), expected.table(), check_exact=True)
        assert sorted(row["trial_id"] for row in found.told) == found.ids()
        searches = [driven.store.searches() for driven in (found, expected)]
        pd.testing.assert_frame_equal(*searches)
