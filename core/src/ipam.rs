//! The address pool: ledger, planner, checker and journal records. Filled next.
