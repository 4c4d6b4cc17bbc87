"""What each verb of the command line does. Only here, and in `cli`, is anything printed."""
