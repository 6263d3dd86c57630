"""What a model will need and how fast it will be here, before a byte of its weights is fetched.

shape.py       a model as far as sizes go: experts, dense weights, what a sequence keeps
checkpoint.py  that, from the headers of safetensors files; container.py, from a set's index;
               presets.py, known by name; dense.py, what a token reads of dense weights
find.py        which of these a word on the command line means; only headers and indexes are fetched
ceilings.py    what memory and disk of this machine give, measured once and remembered;
               here.py, what else a forecast asks of this machine
speed.py       tokens a second as a band, and the measurements its shares come from
forecast.py    all of it for one model: sizes, speeds by budget, and whether it fits
report.py      the same for people and as JSON
"""
