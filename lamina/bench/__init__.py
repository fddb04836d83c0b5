"""How fast is it, and what would help? `lamina bench`.

In: nothing, or the folder of a run. Out: figures as plain dicts, which go to JSON as they are, and words for people.

    machine.py   what this machine can do: products, memory, the smallest operation, one step of a tiny net
    step.py      what a step of the run takes, as the run makes it
    parts.py     where the time of a step goes; the arithmetic that cannot be avoided
    measure.py   all of a run in one dict
    advice.py    what would help: each candidate tried on a copy of the net
    words.py     figures -> text
    clock.py     seconds a call, and who else was busy

Everything happens on copies: the run folder, the net and the generators are afterwards as they were.
"""
