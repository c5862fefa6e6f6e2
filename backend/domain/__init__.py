"""What the system is about: frozen records, the states of a job, and the counting of flips. No I/O."""
