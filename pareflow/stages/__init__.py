"""One pure function per step of the workflow. What they make lies in the store; they return small records."""
