"""What containment and which limits this machine and this user can have: `muontrap doctor`.

`probes` looks, and changes nothing that lasts; `findings` says what that means, without looking; `page`
writes it.  See docs/reference/doctor.md.
"""
