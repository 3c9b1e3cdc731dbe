"""The guest's side: one small static C program, and the function that compiles it into the cache.

C because it must run as init in any guest, before and without any library; the recorded exception to "C only in rings".
`agent.h` says how it works.
"""
