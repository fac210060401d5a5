"""``python -m wsgi_admission`` is ``wsgi-admission``."""

from wsgi_admission.cli import main

if __name__ == "__main__":
    main(prog_name="wsgi-admission")
