"""What a process tells: metrics, traces, logs, health."""
