"""The consumer process: commands from Kafka into Postgres, exactly once."""
