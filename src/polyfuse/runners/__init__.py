"""Where jobs run; results do not depend on it."""
