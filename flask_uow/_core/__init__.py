"""The ring that decides and acts. It knows SQLAlchemy, and neither Flask nor blinker."""
