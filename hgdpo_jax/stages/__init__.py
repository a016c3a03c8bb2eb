"""The stages of an experiment: each reads earlier stages' folders, writes one of its own, and nothing else.

A stage is a module with

    INPUTS                  names of the earlier stages that it reads
    settings(config)        the settings that it reads, a dict of plain values: they make its fingerprint
    plan(config, run)       what it costs, one line
    run(config, run)        the work; goes on where a killed run stopped
    check(config)           optional: raises UserError for what cannot work, before any stage runs
    EVERY_HOST = True       optional: of several processes each calls run; else the first one alone, and all others wait
"""
