"""What the server has done by child processes, one run and one export at a time: rows that outlive it, and who works them off."""
