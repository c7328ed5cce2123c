"""`python -m digitcnn COMMAND ...` is `digitcnn COMMAND ...`."""

from digitcnn.cli import main

if __name__ == "__main__":
    main()
