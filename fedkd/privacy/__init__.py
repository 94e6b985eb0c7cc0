"""Privacy: what events cost, the mechanisms behind them, the ledger, secure aggregation, and audits."""
