"""For the person on call: looking, explaining, checking, repairing. No process needs any of it."""
