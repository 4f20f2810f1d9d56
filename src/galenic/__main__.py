"""`python -m galenic`, and with it `torchrun -m galenic`."""

from galenic.app.cli import main

if __name__ == "__main__":
    main()
