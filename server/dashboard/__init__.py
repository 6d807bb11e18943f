"""What a coordinator keeps open all day: the runs, sites and requests in a browser."""
