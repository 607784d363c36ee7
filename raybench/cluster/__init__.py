"""Ray: session, warm actors, Tune search in rounds, aggregator, leases. The only package that imports Ray."""
