"""What tests and bench share: real servers, one installation for each test, proxies, waiting."""
