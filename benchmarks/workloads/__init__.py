"""The work that is measured, each kind in a module of its own."""
