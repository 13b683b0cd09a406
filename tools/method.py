"""Draw nbs/images/method.png, the picture that explains the method: one image, two streams, boxes, a judge, one answer.

Only a change of this file needs another run; the picture is committed. It reads from top to bottom, so that it also fits a phone."""
from pathlib import Path
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch,FancyBboxPatch,Rectangle
from PIL import Image

OUT = Path(__file__).resolve().parent.parent/'nbs/images/method.png'
INK,PALE,GREY = '#1d2433','#f4f5f7','#5b6472'
PINK,BLUE,GREEN = '#c2255c','#1864ab','#2b8a3e'

def tile(ax, x, y, top, bottom, side=46):
    ax.add_patch(Rectangle((x, y), side, side/2, fc=bottom, ec='none'))
    ax.add_patch(Rectangle((x, y+side/2), side, side/2, fc=top, ec='none'))

def frame(ax, x, y, width, height, colour):
    style = 'round,pad=0,rounding_size=12'
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc='white', ec=colour, lw=2))

def arrow(ax, start, end, colour=INK, bend=0.):
    style = f'arc3,rad={bend}'
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=20, lw=2.4, color=colour, connectionstyle=style))

def say(ax, x, y, text, size=15, colour=INK, **more):
    ax.text(x, y, text, size=size, color=colour, va='center', **more)

def draw_question(ax):
    ax.add_patch(Rectangle((40, 530), 200, 200, fc=PALE, ec='#c9ced6'))
    tile(ax, 160, 650, '#2b8a3e', '#f2c80f')
    tile(ax, 74, 566, '#7048b8', '#22b8cf')
    tile(ax, 170, 556, '#d9480f', '#74b816')
    ax.add_patch(Rectangle((156, 646), 54, 54, fill=False, ec=PINK, lw=3))  # written as pixels from the upper left: 116, 30 to 170, 84
    say(ax, 270, 700, 'One image, one question', 21, weight='bold')
    say(ax, 270, 652, 'What colour is the top', 19)
    say(ax, 270, 618, 'of the yellow tile?', 19)
    say(ax, 270, 566, 'N answers in each of two streams', 17, GREY)

def draw_stream(ax, x, colour, name, lines, paid):
    frame(ax, x, 256, 402, 218, colour)
    say(ax, x+20, 446, name, 20, colour, weight='bold')
    for i,line in enumerate(lines): say(ax, x+20, 404-33*i, line, 18)
    say(ax, x+20, 286, paid, 16, GREY)

def draw_judge(ax):
    frame(ax, 270, 122, 340, 88, GREEN)
    say(ax, 440, 184, 'judge', 20, GREEN, weight='bold', ha='center')
    say(ax, 440, 149, 'Do they say the same?', 17, ha='center')
    arrow(ax, (210, 252), (290, 214), PINK)
    arrow(ax, (670, 252), (590, 214), BLUE)
    say(ax, 40, 218, 'the best so far', 16, GREY)

def draw_answer(ax):
    arrow(ax, (440, 118), (440, 86), GREEN)
    say(ax, 440, 64, 'You use the textual stream', 21, weight='bold', ha='center')
    say(ax, 440, 26, 'What the boxes taught is now in its words', 17, GREY, ha='center')

def draw():
    fig = plt.figure(figsize=(7.6, 6.4), dpi=180, facecolor='white')
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 880), ylim=(0, 741))
    ax.axis('off')
    draw_question(ax)
    grounded = ['The yellow tile', '[116,30,170,84]', 'has a green top.']
    textual = ['The yellow tile, in the', 'upper right, has a', 'green top.']
    draw_stream(ax, 28, PINK, 'grounded', grounded, 'reward: answer + boxes')
    draw_stream(ax, 450, BLUE, 'textual', textual, 'reward: answer + judge')
    arrow(ax, (150, 526), (200, 478), PINK)
    arrow(ax, (540, 545), (600, 478), BLUE)
    draw_judge(ax)
    draw_answer(ax)
    fig.savefig(OUT)
    plt.close(fig)
    Image.open(OUT).convert('RGB').quantize(128).save(OUT, optimize=True)

if __name__=='__main__': draw()
