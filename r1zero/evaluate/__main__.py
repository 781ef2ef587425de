"""How good is a model: its completions of held-out problems, scored."""

import signal
import sys

from r1zero.evaluate.command import main, stop

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    main()
