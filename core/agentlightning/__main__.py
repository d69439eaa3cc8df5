"""`python -m agentlightning` is `agl`, where the interpreter is at hand and the script is not."""

if __name__ == "__main__":
    from agentlightning.cli.main import main

    main()
