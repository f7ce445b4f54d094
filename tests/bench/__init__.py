"""capstand beside the programs people use today: `scripts/bench`, one module per kind of figure.

All programs read a fake card of the same kind (`programs.Cards`): 48 kHz stereo S16, periods of
10 ms and at most 500 ms of buffer whatever a program asks for, so nobody wins by taking another
shape of buffer. They run one after another in rounds, each round in another order, and what else
the machine did meanwhile is a column of its own. Only `kernel` has other cards: the kernel's own.
"""
