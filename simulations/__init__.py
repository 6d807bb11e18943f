"""The researcher's face: hospitals simulated on one machine, running the real server and client apps."""
