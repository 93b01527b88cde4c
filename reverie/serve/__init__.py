"""`reverie serve`: sessions that sleep, behind the interface of OpenAI.

sessions, prefixes, memories   what was heard, by immutable id, by its tokens, by name; on disk and awake in memory
row, batch, writer             one text that is heard and gone on with; several as one batch; what is shown of it
engine, reading                the thread that owns the model; texts that become memories in the background
idle                           sleep over a window that is not full
queues, connection             who waits for whom: requests at one conversation, and nobody for a slow client
schema, described, *_routes, guard    HTTP: what is taken and given, and what is refused
llm_plugin                     the same models and memories for the command-line tool `llm`, without a server
"""
