"""The subcommands of ``amg-reid``: a module's docstring is the help, ``run(args)`` gives the exit status."""
