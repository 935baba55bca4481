"""One command a file: `add` declares its arguments, `run` takes them and returns the exit code. Whatever is heavy is
imported within `run`, once the arguments are known to be good."""
