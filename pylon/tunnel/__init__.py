"""The Claude tunnel: a web page drives a Claude session that runs on this machine, under this machine's rules."""
