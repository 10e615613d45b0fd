import re
import subprocess
import sys


def test_baseline_of_the_demo(tmp_path):
    command = [sys.executable, "-m", "experiments.baseline", "--config=demo", "--order=1"]
    command += ["--split=test", f"--config.data.data_dir={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    line = r"(\d\.\d{4}) bits per sample: Markov model of order 1, test split of demo\n"
    assert 0.5 < float(re.fullmatch(line, ran.stdout)[1]) < 8
