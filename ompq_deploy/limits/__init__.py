"""What a plan has to keep: budgets, one resource per file, the widths that may be chosen, and rules on layers."""
