"""Everything that only a GPU can prove, in one resumable command: `vitbench certify`."""
