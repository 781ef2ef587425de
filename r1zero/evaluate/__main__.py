"""How good is a model: its completions of held-out problems, scored."""

import signal

from r1zero.evaluate.command import main, stop

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    main()
