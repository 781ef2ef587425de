import sys

from r1zero.report.page import main

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    main()
