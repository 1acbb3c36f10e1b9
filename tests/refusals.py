"""What the tests of commands share."""

from calibrant.cli.main import main


def refused(capsys, *arguments):
    """Runs a command that must be refused; returns its one line."""
    try:
        status = main(list(arguments))
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err.strip()
    assert status == 2, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "error:" in line]
    assert len(lines) == 1, said
    return lines[0]
