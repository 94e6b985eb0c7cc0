from rich.console import Console

from fedkd import doctor


def test_extras_survive_the_terminal_and_absent_data_say_how_they_come(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    monkeypatch.setattr("fedkd.dataset.on_disk", lambda: {"digits": "bundled", "mnist": "", "cifar10": ""})
    console = Console(width=400, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for _, what, detail in doctor.examine():
            console.print(f"{what} {detail}", soft_wrap=True)
    text = console.export_text()
    assert "pip install 'fedkd[dev]'" in text and "pip install '.[hub]'" in text
    assert "grpcio" in text and "threadpoolctl" in text
    assert "torchvision(name='MNIST', download=True)" in text and "cifar10" in text
