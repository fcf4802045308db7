"""What people look at: plan, report, inspection, evaluation, verify, bench. Everything here only reads."""
