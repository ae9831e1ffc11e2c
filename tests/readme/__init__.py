"""The platform team's README, followed line by line."""
