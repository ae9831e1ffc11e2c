"""The coordination point between the API and the Runner: a command in, one worker and one order out."""
