"""`doctor`: checks of settings, Postgres, Kafka and what they hold."""
