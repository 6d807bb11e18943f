"""What the coordinator and the sites must agree on; imports nothing else of ours."""
