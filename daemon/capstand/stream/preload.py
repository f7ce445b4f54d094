"""What the process of a stream loads late when it is alone, because that takes longer than to open
a card; where there are several it is loaded once, before they are forked."""

import capstand.dsp.level  # noqa: F401
