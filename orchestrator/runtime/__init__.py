"""How processes run: setup, migrations, signals, supervision."""
