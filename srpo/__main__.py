"""`python -m srpo`, which is how torchrun starts every rank: `torchrun ... -m srpo train CONFIG`."""

from srpo.cli import main

if __name__ == "__main__":
    main()
