"""What a served model does, watched: rules, evidence that may be looked at always, drift, late labels."""
