"""The steps of the workflow, and the jobs that they run elsewhere. What they make lies in the store."""
