"""A deterministic world under the sweep: one seed decides every order, delay and fault."""
