"""What every test stands on: the signals a person's shell would give its programs."""

import signal

# A runner started in the background of a script ignores SIGINT, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
