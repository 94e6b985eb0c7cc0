"""The server side of a federation of real devices: certificates, invitations, the front, and what runs behind it."""
