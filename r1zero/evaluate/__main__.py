import signal

from r1zero.evaluate.command import interrupt_once, main

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt_once)
    main()
